"""The map: small, real problems in which every method is tuned alike and compared with plain SGD.

A `Regime` (`engine`) is a row of the map, and one of its methods in it a cell. Each module of rows
has a function that returns a list of them; a new one is added to `supervised`'s in
`examples/when.py`.

    engine      what a regime is, how a cell is tuned and measured
    verdicts    paired differences, and what they are worth
    training    training from many seeds and settings in one compiled program
    supervised  the rows of supervised learning
    table       the tables in Markdown
    picture     the map as a picture
"""
