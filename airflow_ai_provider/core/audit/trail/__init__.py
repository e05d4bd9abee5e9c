"""Events as a task writes them: schema, hash chain, segments, spool."""
