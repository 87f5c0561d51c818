"""Sessions: the supervisor that owns a world and its trace."""
