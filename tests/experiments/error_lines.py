"""What a program prints where its flags are wrong."""


def error_line(main, flags, capsys):
    """The one line on stderr; the exit code is 2, and nothing is on stdout."""
    try:
        code = main(flags.split() if isinstance(flags, str) else flags)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err
