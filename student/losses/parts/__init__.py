"""The parts of the loss: one file for each kind of row, behind one interface."""
