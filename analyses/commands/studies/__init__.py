"""Commands that make a study: analyze, crossings, maxent, temperature, complexity."""
