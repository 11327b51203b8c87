SELECT
    row_id AS customer_id,
    recency::DOUBLE AS recency_months,
    history::DOUBLE AS past_spend,
    history_segment,
    mens::DOUBLE AS bought_mens,
    womens::DOUBLE AS bought_womens,
    newbie::DOUBLE AS is_new,
    zip_code,
    channel
FROM '{root}/hillstrom.parquet'
