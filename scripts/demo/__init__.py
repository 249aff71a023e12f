"""The demo runs the whole path from text to trained student on this machine, with a small teacher that it trains."""
