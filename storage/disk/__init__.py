"""Publish and remove files and directories whole or not at all; keep paths inside a directory; locks; hashes."""
