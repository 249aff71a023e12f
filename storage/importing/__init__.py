"""Make a cache of targets that another tool wrote: dumps of servers, Parquet with top-k lists, DistillKit's sets."""
