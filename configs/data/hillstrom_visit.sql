SELECT
    row_id AS customer_id,
    TIMESTAMP '2008-03-20' AS decision_time,
    CASE segment WHEN 'Mens E-Mail' THEN 'mens' WHEN 'Womens E-Mail' THEN 'womens' ELSE 'none' END AS action,
    visit::DOUBLE AS reward
FROM '{root}/hillstrom.parquet'
