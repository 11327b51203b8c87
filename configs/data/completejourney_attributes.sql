-- Demographics of the 801 households that gave them; the others have none, which is a value too.
SELECT
    household_id AS customer_id,
    nullif(age, 'NaN') AS age,
    nullif(income, 'NaN') AS income,
    nullif(home_ownership, 'NaN') AS home_ownership,
    nullif(marital_status, 'NaN') AS marital_status,
    nullif(household_size, 'NaN') AS household_size,
    nullif(household_comp, 'NaN') AS household_comp,
    nullif(kids_count, 'NaN') AS kids_count
FROM '{root}/demographics.parquet'
