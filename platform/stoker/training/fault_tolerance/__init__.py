"""Who watches whom, and what happens when something dies."""
