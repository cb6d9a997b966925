"""What finished runs say: tables, pictures, pages."""
