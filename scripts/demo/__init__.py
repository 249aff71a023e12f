"""The demo: one run of a small teacher, three students without it, and a comparison of them."""
