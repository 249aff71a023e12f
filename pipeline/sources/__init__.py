"""Open a data source and read its documents: text, JSON and Parquet files, hub data, the standard library."""
