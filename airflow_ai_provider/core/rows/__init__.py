"""Read rows from a URI and write them as parts that a retry can rely on."""
