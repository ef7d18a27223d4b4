"""seed -> MR and CT heart phantoms with labels, written as a cohort."""
