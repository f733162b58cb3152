"""The machines of a simulated grid, the people at them, and the referee."""
