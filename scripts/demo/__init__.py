"""The demo: the main job from end to end on this machine, and the small teacher that it trains for it."""
