"""The formats that are read: a file each, from files of a source to its texts."""
