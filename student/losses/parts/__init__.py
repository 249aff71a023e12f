"""What the rows of each kind add to the loss: one file a kind, behind one interface."""
