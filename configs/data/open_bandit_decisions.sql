SELECT
    row_number() OVER (ORDER BY "timestamp", item_id, position) AS customer_id,
    "timestamp" AS decision_time,
    'item_' || item_id AS action,
    propensity_score AS propensity,
    click::DOUBLE AS reward
FROM '{root}/random_all.parquet'
