"""Virtual time, faults and checkers for tests of p2pgrid and of what is built on it: public and documented."""
