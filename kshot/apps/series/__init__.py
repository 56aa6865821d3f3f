"""Series: interpolation and regression with prediction intervals."""
