"""translate, adapt, distil. May import objective and what stands below."""
