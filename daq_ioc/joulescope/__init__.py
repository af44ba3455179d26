"""What a JS110's words, calibrations and files mean: facts shared by driver, emulator and JLS.

Nothing in here talks to an instrument, opens a file or starts a thread.
"""
