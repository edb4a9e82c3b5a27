"""Which plan a step gets: by the shapes of its inputs, kept on disk, made anew."""
