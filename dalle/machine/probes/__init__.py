"""What is asked of a process of its own (`dalle.machine.asking`): each module is run, and tells facts, not verdicts."""
