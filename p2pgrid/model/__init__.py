"""Values: frozen structs and ids. No I/O, no time, no randomness."""
