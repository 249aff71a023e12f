"""HTML pages, tables and charts that any report uses.

Nothing on a page runs or is fetched: charts are inline SVG that follows the reader's light or dark mode, and details
open and close by themselves.
"""
