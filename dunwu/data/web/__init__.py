"""From web pages to FineWeb's records: plain functions on text, and the steps that put them together."""
