"""Attack code: what a hostile unit would try, one function for each attempt.

Nothing here is run by the node itself: ``source`` packs the text of these modules into a unit, which puts them together again. They use the
standard library alone, since nothing else may be there, and every attack leaves the machine as it was when it succeeds: the same code runs
without a cage to show that it works. An attack returns what it gained; it is held when the system refuses it by one of the
errors it names. Every other exception says that the attack itself is broken, and counts as a cage that does not hold.
"""
