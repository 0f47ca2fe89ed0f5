"""Teachers: what an explanation is worth to a frozen student, explanations collected for another, and examinations."""
