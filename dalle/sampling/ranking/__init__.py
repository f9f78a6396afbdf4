"""What is seen of codes: their pictures and scores, and a shortlist that is made before there are any."""
