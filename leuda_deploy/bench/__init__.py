"""model + scan -> time and memory by engine. May import inference, export and what stands below."""
