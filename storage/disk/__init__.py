"""Files and directories that appear whole or not at all, paths that stay inside, locks, and hashes of files."""
