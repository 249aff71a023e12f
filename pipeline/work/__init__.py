"""Tools of processes that share a run: claims, the work directory, and a thread that writes behind the teacher."""
