"""What trainings of two players need beside them: wrong captions, noise that a resumed run meets again, figures of collapse."""
