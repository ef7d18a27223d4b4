"""many scans -> label files and reports. May import inference, export and what stands below."""
