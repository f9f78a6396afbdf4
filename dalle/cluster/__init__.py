"""Who is there, do they agree, are they alive."""
