-- The names under which the functions are called; @ is replaced by the version when the library is loaded.
-- What empties a full Redis is allowed to run in one.

redis.register_function('qs_submit_@', submit)
redis.register_function('qs_resume_@', resume)
redis.register_function('qs_register_@', register)
redis.register_function({ function_name = 'qs_finish_@', callback = finish, flags = { 'allow-oom' } })
redis.register_function({ function_name = 'qs_cancel_@', callback = cancel, flags = { 'allow-oom' } })
redis.register_function({ function_name = 'qs_heartbeat_@', callback = heartbeat, flags = { 'allow-oom' } })
redis.register_function({ function_name = 'qs_drain_@', callback = drain, flags = { 'allow-oom' } })
redis.register_function({ function_name = 'qs_reap_@', callback = reap, flags = { 'allow-oom' } })
redis.register_function('qs_response_new_@', response_new)
redis.register_function('qs_response_write_@', response_write)
redis.register_function('qs_response_close_@', response_close)
redis.register_function('qs_response_end_@', response_end)
redis.register_function('qs_response_touch_@', response_touch)
redis.register_function({ function_name = 'qs_response_drop_@', callback = response_drop, flags = { 'allow-oom' } })
