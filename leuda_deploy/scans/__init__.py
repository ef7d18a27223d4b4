"""a scan file <-> arrays that know where they stand. May import errors and machine."""
