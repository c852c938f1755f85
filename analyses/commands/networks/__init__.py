"""Commands about networks and files: train, inspect, convert, construct, compose."""
