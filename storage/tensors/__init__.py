"""What both sides need of torch: the one room of storage that imports it, and nothing else in storage imports this."""
