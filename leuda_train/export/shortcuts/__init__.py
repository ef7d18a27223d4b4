"""what may be left out of a scan, proven on whole scans against a pass over all of it."""
