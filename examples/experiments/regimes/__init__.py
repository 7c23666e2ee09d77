"""The map: small, real problems in which every method is tuned alike and compared with plain SGD.

A `Regime` (see `engine`) is a row of the map, and one of its methods in it a cell. Each module of
rows has a function that returns a list of regimes, which `regimes_of` in `examples/when.py` puts
together; rows of one family share a table.

    engine      what a regime is, how a cell is tuned and measured
    verdicts    what comparisons with the plain method are worth, all together
    training    training from many seeds and settings in one compiled program
    supervised  the rows of supervised learning
    sequence    the rows of tasks in sequence
    language    the rows of a small language model
    games       the rows of games
    table       the tables in Markdown
    picture     the map as a picture
"""
