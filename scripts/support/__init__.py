"""What several programs use: made-up caches, time and memory measured, and peers' formats in processes of their own."""
