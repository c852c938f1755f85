"""Opening strangers' files: runs in a confined process, imports neither torch nor pickle."""
