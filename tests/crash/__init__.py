"""Real processes, really killed: kill -9, crash points, and power cuts replayed and real."""
