"""The trace of a session: canonical lines, hash chain, writer, reader, blobs (trace.md §1-§6)."""
