"""Reports: self-contained HTML pages with tables and charts, and the one about a cache.

Nothing on a page runs or is fetched: charts are inline SVG that follows the reader's light or dark mode, and details
open and close by themselves.
"""
