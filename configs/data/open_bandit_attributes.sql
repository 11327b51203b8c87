-- No impression has a user number, so each is a customer of its own.
SELECT
    row_number() OVER (ORDER BY "timestamp", item_id, position) AS customer_id,
    position::VARCHAR AS position,
    user_feature_0::VARCHAR AS user_feature_0,
    user_feature_1::VARCHAR AS user_feature_1,
    user_feature_2::VARCHAR AS user_feature_2,
    user_feature_3::VARCHAR AS user_feature_3
FROM '{root}/random_all.parquet'
