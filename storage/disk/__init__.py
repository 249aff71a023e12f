"""Files that appear whole or not at all, locks on directories, and hashes of files."""
