"""Many seeds in many processes, what they cover, time lines, and the same with real processes."""
